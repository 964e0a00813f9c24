"""Variables of Ray Serve's own processes that decide how soon it notices a fault. Pure."""

# For Ray Serve's controller and the proxies and replicas that it starts; no effect if Serve runs on the cluster already
CONTROLLER = {
    # three failed checks in a row restart a proxy: a dead one fails at once, one that hangs after its timeout of 10 s
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "10",
    # a replica that fails its health checks will not finish its requests
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
}
