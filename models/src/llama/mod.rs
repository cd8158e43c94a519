//! The Llama family (Touvron et al. 2023 and what follows it): RMSNorm, rotary positions, grouped key/value heads, a gated
//! feed-forward. Llama 2 and 3, SmolLM, Mistral (sliding windows) and Qwen2 (biases on q, k and v) differ by configuration.

mod config;
mod network;
mod rope;

pub use config::LlamaConfig;
