//! Recipe → Plan: prepared data, steps, memory, hours, verdict.

pub mod estimate;
pub mod forecast;
pub mod known;
pub mod offline;
pub mod prepare;
pub mod row_size;
pub mod verdict;
