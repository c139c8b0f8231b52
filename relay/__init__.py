"""The event relay: answers an app once its events are on disk, and forwards them until upstream has taken them."""

from importlib.metadata import version

__version__ = version("event-relay")
