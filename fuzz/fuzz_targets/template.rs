//! Chat templates: compiling, and rendering a chat.
#![no_main]

libfuzzer_sys::fuzz_target!(init: favonius_fuzz::begin(), |data: &[u8]| favonius_fuzz::template(data));
