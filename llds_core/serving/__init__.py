"""The search service: any search engine of the package over HTTP."""
