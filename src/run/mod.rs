//! Plan → finished folder.

pub mod agree;
pub mod finish;
pub mod identity;
pub mod mark;
pub mod pipeline;
pub mod reference_pass;
pub mod resume;
pub mod shell;
pub mod stage;
pub mod upload;
