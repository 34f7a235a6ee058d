"""The search service: any search engine of the package over HTTP."""

from llds_core.serving.app import SearchService, http_server, serve

__all__ = ["SearchService", "http_server", "serve"]
