//! `wardgate check`: is this configuration good? The same code that the service runs before it applies a file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::exit::{Exit, Failure};
use super::table::counted;
use super::terminal;
use crate::config::{self, Config, LoadError, Loaded, Part, Standing};
use crate::route;
use crate::source::SourceConfig;
use crate::upstream::UpstreamConfig;
use crate::values::Name;

/// Is this configuration good? Shows every problem with its line, and what the file sets up.
///
/// Nothing is started, connected or changed. It can be run on any machine: certificates and keys that are not there are
/// warnings, since the box may have them; those that are there are read and must be right.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  wardgate check gateway.toml
  wardgate check /etc/wardgate/gateway.toml && systemctl reload wardgate

Ends with 0 when the file may be used (warnings are shown), with 78 when it has problems.")]
pub struct CheckArgs {
    /// The configuration file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Checks the file: problems go to standard error, what it sets up to standard output.
///
/// # Errors
/// [`Exit::Config`] when the file has problems or can't be read.
pub fn run(args: &CheckArgs) -> Result<(), Failure> {
    let shown = args.file.display();
    match config::load::<SourceConfig, UpstreamConfig>(&args.file) {
        Ok(Loaded { config, report }) => {
            let warnings = report.warnings();
            if warnings > 0 {
                terminal::note(report.to_string().trim_end());
            }
            terminal::say(summary(&config).trim_end())?;
            terminal::say(&match warnings {
                0 => format!("{shown} is good"),
                _ => format!("{shown} may be used, but has {}", counted(warnings as u64, "warning")),
            })
        }
        Err(LoadError::Bad(report)) => {
            terminal::note(report.to_string().trim_end());
            let problems = counted(report.errors() as u64, "problem");
            Err(Failure::new(Exit::Config, format!("{shown} can't be used: it has {problems}, shown above")))
        }
        Err(error) => Err(Failure::new(Exit::Config, error.to_string())),
    }
}

/// What the configuration sets up, in words.
fn summary<S, U>(config: &Config<S, U>) -> String {
    let Config { gateway, spool, sources, upstreams, routes, .. } = config;
    let mut text = format!("gateway {} at {}, spool in {}\n", gateway.name, gateway.site, spool.path.display());
    text.push_str(&sources_in_words(sources, |name| {
        let targets = route::targets(routes, name).into_iter().map(|to| match route::conversion(routes, name, &to) {
            Some(conversion) => format!("{to} as {}", conversion.form.as_str()),
            None => to.to_string(),
        });
        let targets: Vec<String> = targets.collect();
        targets.join(", ")
    }));
    for (name, standing) in upstreams {
        let words = match standing {
            Standing::Active(part) => part.title.clone(),
            Standing::Draining(part) => format!("{}, retired: gets what waits for it and nothing new", part.title),
            Standing::Buried => "retired: what waits for it becomes dead letters".to_owned(),
        };
        text.push_str(&format!("upstream {name}: {words}\n"));
    }
    text
}

fn sources_in_words<S>(sources: &BTreeMap<Name, Part<S>>, targets: impl Fn(&Name) -> String) -> String {
    sources.iter().map(|(name, part)| format!("source {name}: {}, goes to {}\n", part.title, targets(name))).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const GOOD: &str = "[gateway]\nname = \"box\"\nsite = \"here\"\n[spool]\npath = \"spool\"\nkey = \"dev.key\"\n\
                        [source.a.mllp]\nlisten = \"127.0.0.1:2575\"\n[upstream.b.mllp]\naddress = \"b:1\"\nplain = true\n\
                        [upstream.c]\nretired = \"dead-letter\"\n[[route]]\nfrom = [\"a\"]\nto = [\"b\"]\n";

    fn checked(text: &str) -> Result<(), Failure> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.toml");
        fs::write(&file, text).unwrap();
        run(&CheckArgs { file })
    }

    #[test]
    fn a_bad_file_ends_with_78_and_a_good_one_with_0() {
        checked(GOOD).unwrap();
        let failure = checked(&GOOD.replace("plain", "plane")).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert!(
            failure.to_string().ends_with("gateway.toml can't be used: it has 1 problem, shown above"),
            "{failure}"
        );
        let failure = run(&CheckArgs { file: "/nonexistent.toml".into() }).unwrap_err();
        assert_eq!(failure.exit, Exit::Config);
        assert_eq!(failure.to_string(), "/nonexistent.toml: there is no such file: check the path");
    }

    #[test]
    fn the_summary_says_what_goes_where() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gateway.toml");
        fs::write(&file, GOOD).unwrap();
        let Loaded { config, .. } = config::load::<SourceConfig, UpstreamConfig>(&file).unwrap();
        let expected = format!(
            "gateway box at here, spool in {}\nsource a: mllp 127.0.0.1:2575, goes to b\nupstream b: mllp b:1\n\
             upstream c: retired: what waits for it becomes dead letters\n",
            folder.path().join("spool").display()
        );
        assert_eq!(summary(&config), expected);
    }
}
