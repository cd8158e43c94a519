#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| perp_engine_fuzz::targets::hub_discussions(bytes));
