"""The UnifyGeo network (arXiv 2505.07622): training, evaluation and export."""
