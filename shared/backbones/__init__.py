"""Image backbones that no library keeps, under one contract (`base.Backbone`)."""
