//! What does a model read? Prompts as token ids, and the tokenizer that makes them.

pub mod prompts;
mod stream;
mod tokenizer;
mod tokens;

pub use prompts::Prompts;
pub(crate) use stream::Decoder;
pub use tokenizer::{HasTokenizer, Tokenizer};
pub use tokens::Tokens;
