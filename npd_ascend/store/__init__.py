"""Run data on disk: shards, manifests, journals, the top-k codec. The only room that writes run data."""
