"""The default policy: which cases are wrong, how, and what is done about it.

Pure functions of scores, and the rule that carries a decision out voxel by voxel. No networks, no
files, no Ray; papers with policies of their own lie in `methods`.

- `params`: every number that decides
- `decisions`: what is done with one class of one case, and why
- `default`: the policy: its rules, in their order
- `contour_offsets`: outlines off the archive's centre
- `folds`: what networks of different folds differ by
- `outlier_cases`: groups of cases that stand out
- `annotator_styles`: two ways of drawing one archive
- `contour_roughness`: outlines rougher than the others'
- `omitted`: structures that a label lacks
- `finding_scope`: for which classes a finding speaks
- `kept`: what stays as given: right, in doubt, or not judged
- `quality`: the expected Dice of a given label to the truth
- `blending`: outlines drawn towards the networks'
- `blend_groups`: which outlines are blended, and by how much
- `gross_look`: what a label would agree by without a gross error
- `gross`: which gross errors are proved
- `gross_apply`: gross errors repaired, voxel by voxel
- `corrector`: what trusted cases teach about given labels
- `edits`: what is done with one class of one case, and the reason its voxels carry
- `taking`: how voxels take another class
- `apply`: from edits to new voxels
"""

DOOR = (
    "apply",
    "blend_groups",
    "blending",
    "contour_offsets",
    "corrector",
    "decisions",
    "default",
    "edits",
    "gross",
    "gross_apply",
    "gross_look",
    "kept",
    "outlier_cases",
    "params",
    "quality",
)
"""Modules that other rooms may import."""
