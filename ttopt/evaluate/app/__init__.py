"""``ttopt app``: a page on which samples are optimized and looked at, by Gradio (extra ``app``)."""
