"""Prefill and decode on buffers of fixed size, so that a GPU can run each from a recording (a CUDA graph).

`shape`: what the host fixes of a batch; `cache`, `decoding`, `prefill`: plain tensor code that runs on any device;
`capture`: recording and replaying it; `programs`: which recordings are kept; `answer`: a batch from prompts to tokens;
`support`: which calls can run this way.
"""
