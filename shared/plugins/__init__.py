"""crossband inside other libraries: import a module here and its models are known there."""
