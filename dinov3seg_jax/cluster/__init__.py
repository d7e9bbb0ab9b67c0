"""Pictures by the million, on the machines of a Ray cluster."""
