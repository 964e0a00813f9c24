"""What a user runs: one module a command, and the specs, pipeline and progress that they share."""

import os

# Ray Data asks the autoscaler for nodes when those that are there have much to do. It does so without labels, so any
# kind of node may come, and its last request keeps nodes that have nothing to do any more. Pending actors ask for
# themselves. Above such a threshold it never asks; Ray reads them when it is imported.
for _resource in ("CPU", "GPU", "MEMORY", "OBJECT_STORE_MEMORY"):
    os.environ.setdefault(f"RAY_DATA_DEFAULT_CLUSTER_SCALING_UP_{_resource}_UTIL_THRESHOLD", "2")
