//! `favonius completions`: a script for a shell.

use std::io::Write;

use clap_complete::{Shell, generate};

use super::ending::Ending;

/// Prints the script that completes the commands and options of `program` in `shell`.
pub fn run(shell: Shell, program: clap::Command) -> anyhow::Result<Ending> {
    std::io::stdout().write_all(&script(shell, program))?;
    Ok(Ending::Done)
}

fn script(shell: Shell, mut program: clap::Command) -> Vec<u8> {
    let mut text = Vec::new();
    generate(shell, &mut program, "favonius", &mut text);
    text
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command, ValueEnum};

    use super::*;

    #[test]
    fn every_shell_has_a_script() {
        for shell in Shell::value_variants() {
            let plan = Command::new("plan").arg(Arg::new("mfu").long("device-memory"));
            let text = script(*shell, Command::new("favonius").subcommand(plan));
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("plan") && text.contains("device-memory"), "{shell}: {text}");
        }
    }
}
