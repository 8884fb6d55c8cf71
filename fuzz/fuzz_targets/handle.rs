#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| smbdirect_fuzz::run("handle", bytes));
