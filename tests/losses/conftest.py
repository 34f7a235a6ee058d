"""Properties take as long as they take: another process may be at work beside them."""

from hypothesis import settings

settings.register_profile("patient", deadline=None, max_examples=50)
settings.load_profile("patient")
