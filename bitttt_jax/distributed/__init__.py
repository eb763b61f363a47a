"""Several devices and several processes: start-up, mesh, sharding rules, stop requests."""
