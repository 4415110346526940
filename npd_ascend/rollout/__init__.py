"""A frozen snapshot answers prompts on vLLM: engine, worker process, pool of workers."""
