"""Which samples are trained on: metrics, zones, filters, weights. Vectorised over columns; numpy alone."""
