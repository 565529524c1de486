"""Commands of the Makefile, one file per command."""
