"""One prompt in detail: the worked example."""
