//! What does a model read? Prompts as token ids, and the tokenizer that makes them.

mod tokenizer;
mod tokens;

pub use tokenizer::Tokenizer;
pub use tokens::Tokens;
