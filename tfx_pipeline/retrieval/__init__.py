"""The branch of the pipeline with the retriever: what items are, its training, and how it is judged."""
