"""The built-in kinds: each binds a request's parameters to the plain machine learning under `workers.llm`."""
