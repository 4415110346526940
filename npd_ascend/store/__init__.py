"""Run data on disk: shards, manifests, journals, the top-k codec. The only package that writes run data."""
