"""Parallel Track models for TensorRT-LLM's PyTorch backend. Importing ptrt_trtllm.checkpoint registers model and format.

The modules config and folder need transformers, and no TensorRT-LLM.
"""
