"""A model's configuration as engines ask for it."""


def hf_fields(config: dict) -> dict:
    """What engines read of a PretrainedConfig of transformers, by its names there.

    Heads are those of all tracks together, so that heads / ranks is what a rank holds, whether it has one track or several.
    Nothing is called sliding_window: engines would apply that to all layers.
    """
    eos = config["eos_token_ids"]
    return {"architectures": ["PTForCausalLM"], "vocab_size": config["vocab_size"], "hidden_size": config["hidden_size"],
            "num_hidden_layers": config["layers"], "num_attention_heads": config["heads"] * config["tracks"],
            "num_key_value_heads": config["kv_heads"] * config["tracks"], "head_dim": config["head_dim"],
            "intermediate_size": config["ffn_size"], "max_position_embeddings": config["max_context"],
            "bos_token_id": config["bos_token_id"], "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
            "tie_word_embeddings": config["tie_embeddings"]}
