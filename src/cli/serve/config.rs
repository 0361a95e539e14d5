//! `serve --config`: a TOML file whose keys are the names of the flags, put before those of the command line.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::{Context, bail};
use toml::{Table, Value};

/// The arguments of the process with those of the configuration file that `serve --config` names put in: what is given twice
/// is taken from the command line.
pub fn with_config(args: impl IntoIterator<Item = OsString>) -> anyhow::Result<Vec<OsString>> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let Some(at) = args.iter().position(|arg| arg == "serve").filter(|&at| at == 1) else { return Ok(args) };
    let Some(file) = config_file(&args[at + 1..]) else { return Ok(args) };
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let table: Table = text.parse().map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))?;
    let given = flags(&table).with_context(|| file.display().to_string())?;
    args.splice(at + 1..at + 1, given);
    Ok(args)
}

fn config_file(args: &[OsString]) -> Option<PathBuf> {
    let mut file = None;
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--config" {
            file = args.next().map(PathBuf::from);
        } else if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            file = Some(PathBuf::from(path));
        }
    }
    file
}

fn flags(table: &Table) -> anyhow::Result<Vec<OsString>> {
    let mut flags = Vec::new();
    for (key, value) in table {
        if key == "config" {
            bail!("config: a configuration file cannot name another one");
        }
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            // A flag without a value.
            Value::Boolean(true) => {
                flags.push(OsString::from(format!("--{key}")));
                continue;
            }
            Value::Boolean(false) => continue,
            other => bail!("{key}: a {} cannot be the value of an option", other.type_str()),
        };
        let mut flag = OsString::from(format!("--{key}="));
        flag.push(OsStr::new(&text));
        flags.push(flag);
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn keys_become_flags_before_those_of_the_command_line() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let text =
            "port = 9000\nhost = \"0.0.0.0\"\nreproducible = true\nsend-seconds = 1.5\nquiet = false\n";
        std::fs::write(file.path(), text).expect("written");
        let path = file.path().to_str().expect("ascii");
        for given in [
            format!("sidereal serve --config {path} --port 1"),
            format!("sidereal serve --config={path} --port 1"),
        ] {
            let found = with_config(args(&given)).expect("valid");
            let expected =
                args("sidereal serve --port=9000 --host=0.0.0.0 --reproducible --send-seconds=1.5");
            assert_eq!(
                found[..expected.len()].iter().collect::<std::collections::BTreeSet<_>>(),
                expected.iter().collect()
            );
            assert_eq!(found.len(), expected.len() + args(&given).len() - 2);
            assert_eq!(found.last().expect("some"), "1");
        }
    }

    #[test]
    fn other_commands_and_lists_are_left_alone_and_refused() {
        assert_eq!(
            with_config(args("sidereal generate --config x")).expect("untouched"),
            args("sidereal generate --config x")
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        let path = file.path().to_str().expect("ascii").to_owned();
        for (text, expected) in
            [("port = [1]", "port: a array"), ("config = \"x\"", "config:"), ("port = ", "TOML")]
        {
            std::fs::write(file.path(), text).expect("written");
            let error = format!(
                "{:#}",
                with_config(args(&format!("sidereal serve --config {path}"))).expect_err(text)
            );
            assert!(error.contains(expected) && error.contains(&path), "{error}");
        }
        assert!(with_config(args("sidereal serve --config /nonexistent/file")).is_err());
    }
}
