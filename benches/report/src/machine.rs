//! What machine this is: what a reader has to know who compares figures, and no name of it.

use std::{fs, process::Command};

use crate::{Result, data, save as save_text};

/// Saves it with the data. To be called where the benchmarks run.
pub(crate) fn save() -> Result<()> {
    let processor = read("/proc/cpuinfo")?;
    let model = after(&processor, "model name").unwrap_or("unknown");
    let is_virtual = after(&processor, "flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor"));
    let cores = std::thread::available_parallelism().map_err(|error| format!("the number of cores: {error}"))?;
    let release = read("/etc/os-release")?;
    let system = after(&release, "PRETTY_NAME").unwrap_or("Linux").trim_matches('"');
    let kernel = read("/proc/sys/kernel/osrelease")?;

    let rows = [
        ("processor", model.to_owned()),
        ("cores", cores.to_string()),
        ("virtual machine", if is_virtual { "yes" } else { "no" }.to_owned()),
        ("operating system", system.to_owned()),
        ("kernel", format!("Linux {}", release_number(&kernel))),
        ("rustc", said("rustc", &["--version"])?),
        ("valgrind", said("valgrind", &["--version"])?),
        ("date", said("date", &["-u", "+%F"])?),
    ];
    let lines: String = rows.into_iter().map(|(what, value)| format!("{what},{}\n", value.replace(',', ""))).collect();
    save_text(&data::path("machine"), &format!("what,value\n{lines}"))
}

/// The value of the first such line, `name : value` or `name=value`.
fn after<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.trim_start().strip_prefix([':', '='])?.trim().into();
    text.lines().find_map(value)
}

/// Without what somebody called their own build of it.
fn release_number(kernel: &str) -> &str {
    kernel.trim().split(|letter: char| !letter.is_ascii_digit() && letter != '.').next().unwrap_or_default()
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).map_err(|error| format!("{path}: {error}; the benchmarks are run on Linux"))
}

/// What a program says, without its own name before it.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}; please install it"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    Ok(said.trim().trim_start_matches(program).trim_start_matches([' ', '-']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stands_after_its_name() {
        let text = "processor\t: 0\nmodel\t\t: 17\nmodel name\t: Fast 3000\nNAME=\"Some Linux\"\n";
        assert_eq!(after(text, "model name"), Some("Fast 3000"));
        assert_eq!(after(text, "NAME"), Some("\"Some Linux\""));
        assert_eq!(after(text, "flags"), None);
    }

    #[test]
    fn a_kernel_has_a_number() {
        assert_eq!(release_number("6.1.0-23-amd64\n"), "6.1.0");
        assert_eq!(release_number("6.18.44\n"), "6.18.44");
    }
}
