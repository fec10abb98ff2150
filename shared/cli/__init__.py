"""The command line: typed options, help that fits a screen, one sentence per error."""
