"""What the weather tasks share: fields, grids, stores, statistics, losses, scores, maps, audit."""
