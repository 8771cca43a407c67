"""Where samples come from. A data set is a module with

    samples(split, families, seed, limit)                              the embedded one, or
    samples(split, families, seed, limit, root=Path, form=SampleSettings)   one that lies in files
    score      (sample, video (T,3,H,W)) -> object with success, partial, rules; None: judged by a tool of its own
    output_path(sample) -> Path                                        where its official evaluator looks for a video

A sample carries what a model may see, and in ``answer`` what only a scorer or judge may: final frames, true videos,
explanations and checklists never reach a model.
"""
