"""The commands, one module each, and the specs, pipeline and progress that they share."""

import os

# Ray Data requests nodes from the autoscaler under load. Its requests have no labels, so any kind of node may come, and
# the last one keeps idle nodes alive. Pending actors make their own requests. With such high thresholds it never
# requests; Ray reads them at import.
for _resource in ("CPU", "GPU", "MEMORY", "OBJECT_STORE_MEMORY"):
    os.environ.setdefault(f"RAY_DATA_DEFAULT_CLUSTER_SCALING_UP_{_resource}_UTIL_THRESHOLD", "2")
