"""Inference over HTTP: access, bounded bodies, the REST form of the protocol, pictures of the dashboard's page."""
