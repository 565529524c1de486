"""What a command of the Makefile runs, one file a command."""
