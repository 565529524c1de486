"""The commands of ``nonn-device``, one per file; each is imported when it runs, after threads and logs are set up."""
