//! The Yocto layer as far as that can be held without BitBake: what it names is there, what belongs together agrees.
//!
//! No image is built here; the README says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::{run, succeeds, wardgate};
use crate::support::tools::{python_peer, repository, system, venv};

const RECIPE: &str = "recipes-connectivity/wardgate/wardgate_0.1.0.bb";
const BOX: &str = "recipes-core/wardgate-box/wardgate-box_1.0.bb";

fn layer(path: &str) -> PathBuf {
    repository().join("yocto/meta-wardgate").join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The value of `NAME = "..."`, also over several lines.
fn value<'a>(recipe: &'a str, name: &str) -> &'a str {
    let (_, rest) = recipe.split_once(&format!("\n{name} = \"")).unwrap_or_else(|| panic!("no {name}"));
    rest.split_once('"').unwrap().0
}

/// Words of a recipe that begin with `prefix`, without it.
fn named<'a>(recipe: &'a str, prefix: &'a str) -> Vec<&'a str> {
    let words = recipe.split([' ', '\n', '"', ';', '\\']);
    words.filter_map(|word| word.strip_prefix(prefix)).filter(|path| !path.is_empty()).collect()
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn recipes() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![layer("")];
    while let Some(folder) = folders.pop() {
        for path in files_in(&folder) {
            match path.extension().and_then(|extension| extension.to_str()) {
                _ if path.is_dir() => folders.push(path),
                Some("bb" | "bbappend") => found.push(path),
                _ => {}
            }
        }
    }
    found
}

#[test]
fn the_layer_has_nothing_that_a_reader_of_recipes_objects_to() {
    succeeds(Command::new(repository().join("yocto/lint")).arg(venv()));
}

#[test]
fn the_crates_that_bitbake_fetches_are_those_of_the_lock_file() {
    succeeds(Command::new(venv().join("bin/python")).arg(repository().join("yocto/crates")).arg("--check"));
}

#[test]
fn the_recipe_installs_only_what_is_in_the_tree_and_all_units_that_are() {
    let recipe = read(&layer(RECIPE));
    for path in named(&recipe, "${S}/") {
        let there = match path.split_once("/*") {
            Some((folder, extension)) => {
                let wanted = |file: &PathBuf| file.to_string_lossy().ends_with(extension);
                files_in(&repository().join(folder)).iter().any(wanted)
            }
            None => repository().join(path).is_file(),
        };
        assert!(there, "{RECIPE} installs {path}, which is not there");
    }
    let enabled = value(&recipe, "SYSTEMD_SERVICE:${PN}");
    for unit in files_in(&repository().join("systemd")) {
        let name = unit.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".service") || name.ends_with(".socket") {
            assert!(enabled.split_whitespace().any(|other| other == name), "{RECIPE} does not know the unit {name}");
        }
    }
    for unit in enabled.split_whitespace().filter(|word| *word != "\\") {
        assert!(repository().join("systemd").join(unit).is_file(), "{RECIPE} enables {unit}, which is not shipped");
    }
}

#[test]
fn every_local_file_that_a_recipe_names_lies_beside_it_and_every_unit_it_enables_is_among_them() {
    for recipe in recipes() {
        let text = read(&recipe);
        for file in named(&text, "file://").into_iter().filter(|file| *file != "LICENSE" && !file.starts_with("${")) {
            let beside = [recipe.parent().unwrap().join("files"), layer("recipes-bsp/u-boot/files")];
            let there = beside.iter().any(|folder| folder.join(file).is_file());
            assert!(there, "{} names {file}, which is not there", recipe.display());
        }
    }
    let units = value(&read(&layer(BOX)), "SYSTEMD_SERVICE:${PN}").replace('\\', "");
    for unit in units.split_whitespace() {
        assert!(layer("recipes-core/wardgate-box/files").join(unit).is_file(), "{BOX} enables {unit}");
    }
}

#[test]
fn the_recipe_is_of_this_version_and_under_this_licence() {
    assert!(layer(&format!("recipes-connectivity/wardgate/wardgate_{}.bb", env!("CARGO_PKG_VERSION"))).is_file());
    let distro = read(&layer("conf/distro/wardgateos.conf"));
    assert_eq!(value(&distro, "DISTRO_VERSION"), env!("CARGO_PKG_VERSION"));
    let sum = succeeds(Command::new("md5sum").arg(repository().join("LICENSE")));
    let sum = sum.split_whitespace().next().unwrap();
    assert!(read(&layer(RECIPE)).contains(&format!("md5={sum}")), "the licence changed: its sum is {sum}");
}

#[test]
fn users_have_the_same_numbers_on_every_system() {
    let users = read(&repository().join("systemd/sysusers.d/wardgate.conf"));
    let (passwd, group) = (read(&layer("conf/wardgate-passwd")), read(&layer("conf/wardgate-group")));
    let recipe = read(&layer(RECIPE));
    for line in users.lines().filter(|line| line.starts_with(['u', 'g'])) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (kind, name, number) = (words[0], words[1], words[2]);
        assert!(
            group.contains(&format!("{name}:x:{number}:")),
            "{name} has another number in the layer's table of groups"
        );
        assert!(recipe.contains(&format!("--gid {number} {name}")), "{name} has another number in the recipe");
        if kind == "u" {
            assert!(
                passwd.contains(&format!("{name}:x:{number}:{number}:")),
                "{name} has another number in the layer's table"
            );
        }
    }
}

#[test]
fn the_boot_loader_and_the_system_find_its_environment_at_the_same_places() {
    let loader = read(&layer("recipes-bsp/u-boot/files/wardgate-environment.cfg"));
    let system = read(&layer("recipes-bsp/libubootenv/files/fw_env.config"));
    let number = |name: &str| {
        let line = loader.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("no {name}")).to_owned()
    };
    let size = number("CONFIG_ENV_SIZE");
    for offset in ["CONFIG_ENV_OFFSET", "CONFIG_ENV_OFFSET_REDUND"] {
        let entry = format!("{} {size}", number(offset));
        assert!(system.contains(&entry), "fw_env.config has no \"{entry}\"");
    }
}

#[test]
fn a_new_system_that_is_not_well_is_left_after_three_restarts_and_one_that_was_well_never_is() {
    let folder = tempfile::tempdir().unwrap();
    let said = succeeds(Command::new("sh").arg(repository().join("tests/it/yocto/slots.sh")).arg(folder.path()));
    assert!(said.contains("holds: all of it"), "{said}");
}

#[test]
fn a_stick_that_is_plugged_in_is_never_taken_for_the_data_of_the_box() {
    let fstab = read(&layer("recipes-core/base-files/files/fstab"));
    let data = fstab.lines().find(|line| line.split_whitespace().nth(1) == Some("/data")).unwrap();
    let disk = read(&layer("files/wic/wardgate-ab.wks.in"));
    let number = disk.lines().filter(|line| line.starts_with("part ")).position(|line| line.starts_with("part /data "));
    let partition = format!("/dev/@PARTITION@{}", number.unwrap() + 1);
    assert_eq!(data.split_whitespace().next(), Some(&*partition), "no label: anybody can give one to a stick");
    let recipe = read(&layer("recipes-core/base-files/base-files_%.bbappend"));
    assert!(recipe.contains("s,@PARTITION@,${WARDGATE_PARTITION},g"), "the board's disk is written into it");
}

#[test]
fn a_kernel_that_panics_on_a_look_without_a_board_starts_anew_as_well() {
    let loader = read(&layer("recipes-bsp/wardgate-boot/files/boot.cmd.in"));
    let limit = loader.split_whitespace().find(|word| word.starts_with("panic=")).unwrap();
    let kas = read(&repository().join("yocto/kas/qemuarm64.yml"));
    assert!(kas.lines().any(|line| line.contains("QB_KERNEL_CMDLINE_APPEND") && line.contains(limit)), "no {limit}");
}

#[test]
fn systemd_understands_the_units_of_the_box() {
    let folder = tempfile::tempdir().unwrap();
    let scripts = format!("{}/", layer("recipes-core/wardgate-box/files").display());
    let mut verify = system("systemd-analyze");
    verify.arg("verify");
    for unit in files_in(&layer("recipes-core/wardgate-box/files")) {
        if unit.extension().is_some_and(|extension| extension == "service" || extension == "timer") {
            let text = read(&unit).replace("/usr/lib/wardgate/", &scripts);
            let text =
                text.replace("ExecStart=wardgate ", &format!("ExecStart={} ", wardgate().get_program().display()));
            let copy = folder.path().join(unit.file_name().unwrap());
            fs::write(&copy, text).unwrap();
            verify.arg(copy);
        }
    }
    let said = run(&mut verify).said;
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("wardgate")).collect();
    assert_eq!(ours, Vec::<&str>::new());
}

#[test]
fn the_bill_of_materials_is_valid_complete_and_the_same_each_time() {
    let write = || succeeds(Command::new(venv().join("bin/python")).arg(repository().join("yocto/sbom")));
    let (bill, again) = (write(), write());
    assert_eq!(bill, again, "two runs on one lock file write the same");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("wardgate.cdx.json");
    fs::write(&file, &bill).unwrap();
    succeeds(python_peer("sbom_check.py").arg(&file));
    let bill: serde_json::Value = serde_json::from_str(&bill).unwrap();
    let names: Vec<&str> =
        bill["components"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"rustls") && names.contains(&"redb"), "what is in the executable is in it: {names:?}");
    assert!(!names.contains(&"proptest") && !names.contains(&"rumqttc"), "what only tests use is not: {names:?}");
    for component in bill["components"].as_array().unwrap() {
        for part in ["version", "hashes", "licenses", "purl"] {
            assert!(!component[part].is_null(), "{} has no {part}", component["name"]);
        }
    }
}
