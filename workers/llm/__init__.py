"""Plain machine learning: read data, load, train, generate, score. Knows nothing of queues and stores.

Importing this package imports no torch; `model`, `bases`, `train` and `generate` do, when they are first called.

    data      rows from JSONL, with line-numbered errors
    model     a verified safetensors directory, and an adapter on it
    bases     the two bases that need no hub: SmolLM2 from PyPI, and a tiny GPT-2
    train     full fine-tune or LoRA
    generate  batched text, and the choice between given answers
    score     perplexity, exact match, accuracy, paired comparison
"""
