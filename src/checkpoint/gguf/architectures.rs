//! Which architectures of GGUF files are read? A table each: what llama.cpp calls keys and tensors, and Hugging Face.

use serde_json::{Value as Json, json};

/// How the files of an architecture are read.
pub(super) struct Architecture {
    /// `general.architecture`, which also begins the names of its keys.
    pub name: &'static str,
    /// A tensor by which this one is told from another of the same name, which comes later in the list.
    pub only_with: Option<&'static str>,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class in transformers that runs it.
    pub class: &'static str,
    /// Keys after the architecture's name, and in `config.json`, where they are not those of [`KEYS`].
    pub keys: &'static [(&'static str, &'static str)],
    /// What the files leave to the name of the architecture, as `config.json` says it.
    pub fixed: fn() -> Json,
    /// Whether only a part of each head turns, if `rope.dimension_count` says so.
    pub rotates_parts: bool,
    /// In a model of this depth the scores are scaled by the root of `hidden_size / num_attention_heads`, otherwise by that of
    /// the width of a head; the config has a key for it.
    pub query_scale: Option<u64>,
    /// Tensors outside blocks, without `.weight` and `.bias`.
    pub outside: &'static [(&'static str, &'static str)],
    /// Where Hugging Face's names of blocks begin: `model.layers.` before the number.
    pub block: &'static str,
    /// Tensors of a block, without `.weight` and `.bias`; `{}` is for the number of one of several that share a tensor.
    pub inside: &'static [(&'static str, &'static str)],
    /// Names of tensors of a block that are as in [`LLAMA`] but for those that `inside` lists.
    pub like_llama: bool,
    /// Tensors of a block that are laid out in another way than Hugging Face's.
    pub layouts: &'static [(&'static str, Layout)],
    /// What is added to the weights of norms.
    pub norm_offset: f64,
}

/// How a tensor of a block is laid out, where not as Hugging Face's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// The rows of each query head in the order of interleaved rotary pairs.
    Queries,
    /// The same of key heads.
    Keys,
    /// All queries, keys and values one after the other.
    Parts,
    /// Rows and columns exchanged.
    Turned,
    /// A vector instead of a matrix of one row.
    Row,
}

/// Keys that most configs have.
pub(super) const KEYS: &[(&str, &str)] = &[
    ("block_count", "num_hidden_layers"),
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("attention.layer_norm_epsilon", "layer_norm_eps"),
    ("rope.freq_base", "rope_theta"),
    ("vocab_size", "vocab_size"),
];

/// Settings that some configs have, and the tensor of the first block that is there if they hold.
pub(super) const SIGNS: &[(&str, &str)] = &[
    ("attention_bias", "attn_output.bias"),
    ("mlp_bias", "ffn_down.bias"),
    ("use_bias", "ffn_down.bias"),
    ("bias", "ffn_down.bias"),
    ("qkv_bias", "attn_q.bias"),
    ("use_qkv_bias", "attn_q.bias"),
    ("qk_layernorm", "attn_q_norm.weight"),
    ("use_qk_norm", "attn_q_norm.weight"),
];

/// The architectures that are read.
pub(super) const ARCHITECTURES: [Architecture; 24] = [
    MIXTRAL,
    LLAMA,
    QWEN2,
    QWEN3,
    QWEN2_MOE,
    QWEN3_MOE,
    GEMMA,
    GEMMA2,
    GEMMA3,
    PHI2,
    PHI3,
    GPT2,
    GPT_NEOX,
    BLOOM,
    FALCON_TWO_NORMS,
    FALCON,
    STARCODER,
    STARCODER2,
    STABLELM,
    OLMO,
    OLMO2,
    GRANITE,
    SMOLLM3,
    COMMAND_R,
];

const INTERLEAVED: &[(&str, Layout)] = &[("attn_q", Layout::Queries), ("attn_k", Layout::Keys)];
const OUTSIDE: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// The names of blocks that most architectures share.
pub(super) const LLAMA_BLOCK: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

const LLAMA: Architecture = Architecture {
    name: "llama",
    only_with: None,
    model_type: "llama",
    class: "LlamaForCausalLM",
    keys: &[],
    fixed: || json!({"hidden_act": "silu"}),
    rotates_parts: false,
    query_scale: None,
    outside: OUTSIDE,
    block: "model.layers.",
    inside: &[],
    like_llama: true,
    layouts: INTERLEAVED,
    norm_offset: 0.0,
};

/// Llama, with its rows in Hugging Face's order.
const PLAIN: Architecture = Architecture { layouts: &[], ..LLAMA };

const MIXTRAL: Architecture = Architecture {
    only_with: Some("blk.0.ffn_gate_inp.weight"),
    model_type: "mixtral",
    class: "MixtralForCausalLM",
    keys: &[("expert_count", "num_local_experts"), ("expert_used_count", "num_experts_per_tok")],
    inside: &[
        ("ffn_gate_inp", "block_sparse_moe.gate"),
        ("ffn_gate_exps", "block_sparse_moe.experts.{}.w1"),
        ("ffn_up_exps", "block_sparse_moe.experts.{}.w3"),
        ("ffn_down_exps", "block_sparse_moe.experts.{}.w2"),
    ],
    ..LLAMA
};

const QWEN2: Architecture = Architecture { name: "qwen2", model_type: "qwen2", class: "Qwen2ForCausalLM", ..PLAIN };
const QWEN3: Architecture = Architecture { name: "qwen3", model_type: "qwen3", class: "Qwen3ForCausalLM", ..PLAIN };

const QWEN2_MOE: Architecture = Architecture {
    name: "qwen2moe",
    model_type: "qwen2_moe",
    class: "Qwen2MoeForCausalLM",
    keys: &[
        ("expert_count", "num_experts"),
        ("expert_used_count", "num_experts_per_tok"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("expert_shared_feed_forward_length", "shared_expert_intermediate_size"),
    ],
    fixed: || json!({"hidden_act": "silu", "norm_topk_prob": false}),
    inside: &[
        ("ffn_gate_inp", "mlp.gate"),
        ("ffn_gate_exps", "mlp.experts.{}.gate_proj"),
        ("ffn_up_exps", "mlp.experts.{}.up_proj"),
        ("ffn_down_exps", "mlp.experts.{}.down_proj"),
        ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
        ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
        ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
    ],
    layouts: &[("ffn_gate_inp_shexp", Layout::Row)],
    ..PLAIN
};

const QWEN3_MOE: Architecture = Architecture {
    name: "qwen3moe",
    model_type: "qwen3_moe",
    class: "Qwen3MoeForCausalLM",
    fixed: || json!({"hidden_act": "silu", "norm_topk_prob": true}),
    layouts: &[],
    ..QWEN2_MOE
};

const GEMMA: Architecture = Architecture {
    name: "gemma",
    model_type: "gemma",
    class: "GemmaForCausalLM",
    fixed: || json!({"hidden_act": "gelu_pytorch_tanh"}),
    norm_offset: 1.0,
    ..PLAIN
};

const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_type: "gemma2",
    class: "Gemma2ForCausalLM",
    keys: &[
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
        ("attention.sliding_window", "sliding_window"),
        ("rope.freq_base_swa", "rope_local_base_freq"),
    ],
    fixed: || json!({"hidden_activation": "gelu_pytorch_tanh"}),
    query_scale: Some(46),
    inside: &[
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    ..GEMMA
};

const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_type: "gemma3_text",
    class: "Gemma3ForCausalLM",
    fixed: || json!({"hidden_activation": "gelu_pytorch_tanh", "sliding_window_pattern": 6}),
    query_scale: Some(62),
    ..GEMMA2
};

const PHI2: Architecture = Architecture {
    name: "phi2",
    model_type: "phi",
    class: "PhiForCausalLM",
    fixed: || json!({"hidden_act": "gelu_new"}),
    rotates_parts: true,
    outside: &[("token_embd", "model.embed_tokens"), ("output_norm", "model.final_layernorm"), ("output", "lm_head")],
    inside: &[("attn_output", "self_attn.dense"), ("ffn_up", "mlp.fc1"), ("ffn_down", "mlp.fc2")],
    ..PLAIN
};

const PHI3: Architecture = Architecture {
    name: "phi3",
    model_type: "phi3",
    class: "Phi3ForCausalLM",
    keys: &[("attention.sliding_window", "sliding_window")],
    rotates_parts: true,
    inside: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
    ..PLAIN
};

const GPT2: Architecture = Architecture {
    name: "gpt2",
    model_type: "gpt2",
    class: "GPT2LMHeadModel",
    keys: &[
        ("block_count", "n_layer"),
        ("context_length", "n_positions"),
        ("embedding_length", "n_embd"),
        ("feed_forward_length", "n_inner"),
        ("attention.head_count", "n_head"),
        ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
    ],
    fixed: || json!({"activation_function": "gelu_new"}),
    outside: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    block: "transformer.h.",
    inside: &[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ],
    like_llama: false,
    layouts: &[
        ("attn_qkv", Layout::Turned),
        ("attn_output", Layout::Turned),
        ("ffn_up", Layout::Turned),
        ("ffn_down", Layout::Turned),
    ],
    ..PLAIN
};

const STARCODER: Architecture = Architecture {
    name: "starcoder",
    model_type: "gpt_bigcode",
    class: "GPTBigCodeForCausalLM",
    fixed: || json!({"activation_function": "gelu_pytorch_tanh", "multi_query": true}),
    layouts: &[],
    ..GPT2
};

const GPT_NEOX: Architecture = Architecture {
    name: "gptneox",
    model_type: "gpt_neox",
    class: "GPTNeoXForCausalLM",
    keys: &[("use_parallel_residual", "use_parallel_residual")],
    fixed: || json!({"hidden_act": "gelu"}),
    rotates_parts: true,
    outside: &[
        ("token_embd", "gpt_neox.embed_in"),
        ("output_norm", "gpt_neox.final_layer_norm"),
        ("output", "embed_out"),
    ],
    block: "gpt_neox.layers.",
    inside: &[
        ("attn_norm", "input_layernorm"),
        ("attn_qkv", "attention.query_key_value"),
        ("attn_output", "attention.dense"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ],
    like_llama: false,
    layouts: &[("attn_qkv", Layout::Parts)],
    ..PLAIN
};

const BLOOM: Architecture = Architecture {
    name: "bloom",
    model_type: "bloom",
    class: "BloomForCausalLM",
    keys: &[
        ("block_count", "n_layer"),
        ("context_length", "seq_length"),
        ("attention.head_count", "n_head"),
        ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
    ],
    fixed: || json!({}),
    rotates_parts: false,
    outside: &[
        ("token_embd", "transformer.word_embeddings"),
        ("token_embd_norm", "transformer.word_embeddings_layernorm"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    block: "transformer.h.",
    inside: &[
        ("attn_norm", "input_layernorm"),
        ("attn_qkv", "self_attention.query_key_value"),
        ("attn_output", "self_attention.dense"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ],
    ..GPT_NEOX
};

/// llama.cpp runs only models with attention and MLP side by side. In the words of the newer ones an older one has a single
/// key/value head.
const FALCON: Architecture = Architecture {
    name: "falcon",
    model_type: "falcon",
    class: "FalconForCausalLM",
    keys: &[
        ("feed_forward_length", "ffn_hidden_size"),
        ("attention.head_count_kv", "num_kv_heads"),
        ("attention.layer_norm_epsilon", "layer_norm_epsilon"),
    ],
    fixed: || json!({"activation": "gelu", "new_decoder_architecture": true, "num_ln_in_parallel_attn": 1}),
    outside: &[
        ("token_embd", "transformer.word_embeddings"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    inside: &[
        ("attn_norm", "input_layernorm"),
        ("attn_qkv", "self_attention.query_key_value"),
        ("attn_output", "self_attention.dense"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ],
    ..BLOOM
};

const FALCON_TWO_NORMS: Architecture = Architecture {
    only_with: Some("blk.0.attn_norm_2.weight"),
    fixed: || json!({"activation": "gelu", "new_decoder_architecture": true, "num_ln_in_parallel_attn": 2}),
    inside: &[
        ("attn_norm", "ln_mlp"),
        ("attn_norm_2", "ln_attn"),
        ("attn_qkv", "self_attention.query_key_value"),
        ("attn_output", "self_attention.dense"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ],
    ..FALCON
};

const STARCODER2: Architecture = Architecture {
    name: "starcoder2",
    model_type: "starcoder2",
    class: "Starcoder2ForCausalLM",
    keys: &[("attention.layer_norm_epsilon", "norm_epsilon")],
    fixed: || json!({"hidden_act": "gelu_pytorch_tanh"}),
    inside: &[("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")],
    ..PLAIN
};

const STABLELM: Architecture = Architecture {
    name: "stablelm",
    model_type: "stablelm",
    class: "StableLmForCausalLM",
    keys: &[("use_parallel_residual", "use_parallel_residual")],
    rotates_parts: true,
    inside: &[("attn_q_norm", "self_attn.q_layernorm.norms.{}"), ("attn_k_norm", "self_attn.k_layernorm.norms.{}")],
    ..PLAIN
};

const OLMO: Architecture = Architecture {
    name: "olmo",
    model_type: "olmo",
    class: "OlmoForCausalLM",
    keys: &[("attention.clamp_kqv", "clip_qkv")],
    ..LLAMA
};

const OLMO2: Architecture = Architecture {
    name: "olmo2",
    model_type: "olmo2",
    class: "Olmo2ForCausalLM",
    inside: &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")],
    ..PLAIN
};

const GRANITE: Architecture = Architecture {
    name: "granite",
    model_type: "granite",
    class: "GraniteForCausalLM",
    keys: &[
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ],
    ..LLAMA
};

const SMOLLM3: Architecture =
    Architecture { name: "smollm3", model_type: "smollm3", class: "SmolLM3ForCausalLM", ..LLAMA };

const COMMAND_R: Architecture = Architecture {
    name: "command-r",
    model_type: "cohere",
    class: "CohereForCausalLM",
    keys: &[("logit_scale", "logit_scale")],
    ..PLAIN
};
