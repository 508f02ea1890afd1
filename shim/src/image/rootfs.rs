//! The layers of a container's root filesystem, read from the mounts that containerd sends (pure).

use std::path::{Path, PathBuf};

use super::Mount;

/// A root filesystem as folders that can be read without mounting it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The layers, the topmost first.
    pub layers: Vec<Layer>,
    /// The xattr that makes a folder of a layer hide those below (kernel, overlayfs.rst, "whiteouts and opaque
    /// directories").
    pub opaque: &'static str,
}

/// One folder of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub folder: PathBuf,
    /// Committed: only the snapshotter changes it, so what was learned of a file there stays true while its inode and
    /// change time stay.
    pub committed: bool,
}

/// A root filesystem whose files cannot be reached through folders.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    #[error(
        "the root filesystem is of type {kind:?}, which cannot be read without mounting: use the overlayfs or native snapshotter"
    )]
    Type { kind: String },
    #[error(
        "the root filesystem has {count} mounts on one another, which cannot be read without mounting: use the overlayfs or native snapshotter"
    )]
    Stacked { count: usize },
    #[error("the root filesystem is an overlay without lowerdir and upperdir")]
    NoLayers,
    #[error("the root filesystem's overlay layer {layer:?} is not an absolute path")]
    Relative { layer: String },
}

const TRUSTED_OPAQUE: &str = "trusted.overlay.opaque";
const USER_OPAQUE: &str = "user.overlay.opaque";

/// The layers of `mounts`, or `root` alone when there are none.
pub fn view(mounts: &[Mount], root: &Path) -> Result<View, ViewError> {
    match mounts {
        [] => Ok(single(root)),
        [mount] => match mount.kind.as_str() {
            "overlay" | "overlayfs" => overlay(&mount.options),
            "bind" => Ok(single(Path::new(&mount.source))),
            "" | "none" if mount.options.iter().any(|option| option == "bind" || option == "rbind") => {
                Ok(single(Path::new(&mount.source)))
            }
            kind => Err(ViewError::Type { kind: kind.to_owned() }),
        },
        _ => Err(ViewError::Stacked { count: mounts.len() }),
    }
}

/// A single folder, writable: nothing about it is remembered.
fn single(folder: &Path) -> View {
    View {
        layers: vec![Layer {
            folder: folder.to_owned(),
            committed: false,
        }],
        opaque: TRUSTED_OPAQUE,
    }
}

fn overlay(options: &[String]) -> Result<View, ViewError> {
    let mut upper = Vec::new();
    let mut lower = Vec::new();
    let mut opaque = TRUSTED_OPAQUE;
    for option in options {
        match option.split_once('=') {
            Some(("upperdir", folder)) => upper = vec![layer(unescape(folder), false)?],
            Some(("lowerdir", folders)) => {
                lower = split_lower(folders).map(|f| layer(f, true)).collect::<Result<_, _>>()?
            }
            // Since Linux 6.8 each lower layer may be an option of its own, without escapes.
            Some(("lowerdir+", folder)) => lower.push(layer(folder.to_owned(), true)?),
            None if option == "userxattr" => opaque = USER_OPAQUE,
            _ => {}
        }
    }
    upper.extend(lower);
    match upper.is_empty() {
        true => Err(ViewError::NoLayers),
        false => Ok(View { layers: upper, opaque }),
    }
}

fn layer(folder: String, committed: bool) -> Result<Layer, ViewError> {
    match folder.starts_with('/') {
        true => Ok(Layer {
            folder: folder.into(),
            committed,
        }),
        false => Err(ViewError::Relative { layer: folder }),
    }
}

/// Splits `a:b` at colons that no backslash escapes. What follows `::` is data of metacopy files alone, no layer.
fn split_lower(folders: &str) -> impl Iterator<Item = String> {
    let mut parts = vec![String::new()];
    let mut characters = folders.chars();
    while let Some(character) = characters.next() {
        let last = parts.len() - 1;
        match character {
            '\\' => parts[last].extend(characters.next()),
            ':' => parts.push(String::new()),
            other => parts[last].push(other),
        }
    }
    parts.into_iter().take_while(|part| !part.is_empty())
}

fn unescape(folder: &str) -> String {
    let mut plain = String::with_capacity(folder.len());
    let mut characters = folder.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.extend(characters.next()),
            other => plain.push(other),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.to_owned(),
            source: source.to_owned(),
            options: options.iter().map(|option| option.to_string()).collect(),
        }
    }

    fn folders(mounts: &[Mount]) -> Vec<(String, bool)> {
        let view = view(mounts, Path::new("/bundle/rootfs")).expect("a readable root filesystem");
        view.layers
            .into_iter()
            .map(|layer| (layer.folder.display().to_string(), layer.committed))
            .collect()
    }

    #[test]
    fn an_overlay_is_its_upper_and_then_its_lowers_in_order() {
        let options = [
            "index=off",
            "workdir=/s/3/work",
            "upperdir=/s/3/fs",
            "lowerdir=/s/2/fs:/s/1/fs",
        ];
        assert_eq!(
            folders(&[mount("overlay", "overlay", &options)]),
            [
                ("/s/3/fs".to_owned(), false),
                ("/s/2/fs".to_owned(), true),
                ("/s/1/fs".to_owned(), true)
            ]
        );
    }

    #[test]
    fn escaped_colons_stay_in_a_layer_and_data_layers_are_left_out() {
        let options = [r"lowerdir=/a\:b:/c\\d::/data"];
        assert_eq!(
            folders(&[mount("overlay", "", &options)]),
            [("/a:b".to_owned(), true), (r"/c\d".to_owned(), true)]
        );
    }

    #[test]
    fn lower_layers_may_come_one_an_option() {
        let options = ["upperdir=/u", "lowerdir+=/b:c", "lowerdir+=/d"];
        assert_eq!(
            folders(&[mount("overlay", "", &options)]),
            [
                ("/u".to_owned(), false),
                ("/b:c".to_owned(), true),
                ("/d".to_owned(), true)
            ]
        );
    }

    #[test]
    fn a_bind_mount_and_no_mount_are_single_writable_folders() {
        assert_eq!(
            folders(&[mount("bind", "/s/1/fs", &["rbind", "ro"])]),
            [("/s/1/fs".to_owned(), false)]
        );
        assert_eq!(
            folders(&[mount("", "/s/1/fs", &["rbind"])]),
            [("/s/1/fs".to_owned(), false)]
        );
        assert_eq!(folders(&[]), [("/bundle/rootfs".to_owned(), false)]);
    }

    #[test]
    fn user_xattrs_name_another_opaque_mark() {
        let options = ["lowerdir=/a:/b", "userxattr"];
        let view = view(&[mount("overlay", "", &options)], Path::new("/")).expect("view");
        assert_eq!(view.opaque, USER_OPAQUE);
    }

    #[test]
    fn other_file_systems_are_refused_by_their_type() {
        let root = Path::new("/");
        let erofs = view(&[mount("erofs", "/dev/loop0", &[])], root).expect_err("erofs is not folders");
        assert_eq!(
            erofs.to_string().split(',').next(),
            Some(r#"the root filesystem is of type "erofs""#)
        );
        let two = [mount("erofs", "a", &[]), mount("overlay", "b", &[])];
        assert_eq!(view(&two, root), Err(ViewError::Stacked { count: 2 }));
        assert_eq!(
            view(&[mount("overlay", "", &["index=off"])], root),
            Err(ViewError::NoLayers)
        );
        let relative = view(&[mount("overlay", "", &["lowerdir=1/fs"])], root);
        assert_eq!(
            relative,
            Err(ViewError::Relative {
                layer: "1/fs".to_owned()
            })
        );
    }
}
