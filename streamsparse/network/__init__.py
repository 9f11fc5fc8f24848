"""Structure and surgery of models: channel groups, removal, masking, loading, costs."""

from streamsparse.network.graph import find_groups
from streamsparse.network.serial import graph_from_json, graph_to_json
from streamsparse.network.surgery import mask, prune

__all__ = ["find_groups", "graph_from_json", "graph_to_json", "mask", "prune"]
