import gzip
import json

import nibabel as nib
import numpy as np
import pytest

from raysegclean.errors import InputError
from raysegclean.store.nifti import decode_nifti, encode_nifti, stem

AFFINE = np.array([[-0.7, 0.1, 0, 90.5], [0.1, 0.7, 0, -20], [0, 0, 5, 3], [0, 0, 0, 1.0]])


def _file(values, kind=nib.Nifti1Image, slope=None, units=None, affine=AFFINE):
    image = kind(values, affine, dtype=values.dtype)
    image.set_qform(affine, 1)
    image.set_sform(affine, 2)
    if units:
        image.header.set_xyzt_units(units)
    if slope:
        image.header.set_slope_inter(*slope)
    return image.to_bytes()


def _values(dtype="int16", shape=(4, 5, 6)):
    return np.random.default_rng(2).integers(0, 100, shape).astype(dtype)


def _same(before: bytes, after: bytes):
    a = nib.Nifti1Image.from_bytes(before)
    b = nib.Nifti1Image.from_bytes(gzip.decompress(after))
    assert a.shape == b.shape
    assert a.get_data_dtype() == b.get_data_dtype()
    assert np.array_equal(a.affine, b.affine)
    assert np.array_equal(np.asarray(a.dataobj), np.asarray(b.dataobj))
    for name in ("pixdim", "qform_code", "sform_code", "xyzt_units", "quatern_b", "srow_x"):
        assert np.array_equal(a.header[name], b.header[name]), name


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 1), (4, 5, 6, 3), (4, 5, 6, 1, 3)])
def test_voxels_dtype_and_geometry_survive_the_round_trip(dtype, shape):
    data = _file(_values(dtype, shape), units="mm")
    nifti = decode_nifti(data)
    assert nifti.array.shape == ((3, 6, 5, 4) if 3 in shape else (6, 5, 4))
    _same(data, encode_nifti(nifti.array, nifti.header, nifti.affine))


def test_axes_are_reversed_and_spacing_follows_them():
    values = _values()
    nifti = decode_nifti(gzip.compress(_file(values)))
    assert nifti.array[3, 2, 1] == values[1, 2, 3]
    assert nifti.spacing_mm == pytest.approx((5.0, 0.5**0.5, 0.5**0.5))
    assert nifti.array.flags.c_contiguous


@pytest.mark.parametrize(("units", "factor"), [("micron", 1e-3), ("mm", 1), ("meter", 1000)])
def test_units_other_than_millimetres_are_converted_and_leave_as_they_came(units, factor):
    data = _file(_values(), units=units)
    nifti = decode_nifti(data)
    assert nifti.spacing_mm[0] == pytest.approx(5 * factor)
    assert nifti.affine[:3] == pytest.approx(AFFINE[:3] * factor)
    assert nifti.affine[3].tolist() == [0, 0, 0, 1]
    _same(data, encode_nifti(nifti.array, nifti.header, nifti.affine))


def test_a_unit_that_nifti_does_not_know_is_refused():
    with pytest.raises(InputError, match="unit 5 of the voxel sizes"):
        decode_nifti(_edited(xyzt_units=5 + 8))
    assert decode_nifti(_edited(xyzt_units=2 + 64)).spacing_mm[0] == pytest.approx(5)


def _edited(**fields):
    """A file of which only the sform is used, with some fields of its header changed."""
    image = nib.Nifti1Image.from_bytes(_file(_values()))
    image.header["qform_code"] = 0
    for name, value in fields.items():
        image.header[name] = value
    return image.header.binaryblock + bytes(4) + image.dataobj.get_unscaled().tobytes("F")


def test_fields_that_are_not_used_may_hold_anything():
    nan = float("nan")
    nifti = decode_nifti(_edited(quatern_b=nan, qoffset_x=float("inf")))
    assert (nifti.header["quatern_b"], nifti.header["qoffset_x"]) == (0.0, 0.0)
    assert nifti.affine == pytest.approx(AFFINE)
    json.dumps(nifti.header, allow_nan=False)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"srow_x": [-0.7, 0.1, 0, np.nan]}, "the affine holds NaN"),
        ({"qform_code": 1, "qoffset_x": np.nan}, "header field qoffset_x is nan"),
        ({"pixdim": [1, np.nan, 1, 1, 0, 0, 0, 0]}, "header field pixdim"),
    ],
)
def test_fields_that_are_used_and_no_numbers_are_refused(fields, text):
    with pytest.raises(InputError, match=text):
        decode_nifti(_edited(**fields))


def test_scaled_integers_become_floats_and_unscaled_ones_stay():
    image = nib.Nifti1Image(_values().astype(np.float32) * 0.5 - 3, AFFINE)
    image.header.set_data_dtype(np.int16)
    data = image.to_bytes()
    loaded = nib.Nifti1Image.from_bytes(data)
    assert loaded.dataobj.slope != 1
    nifti = decode_nifti(data)
    assert nifti.array.dtype == np.float32
    assert np.array_equal(nifti.array.T, loaded.get_fdata(dtype=np.float32))
    assert decode_nifti(_file(_values())).array.dtype == np.int16


def test_big_endian_and_nifti2_files_are_read():
    values = _values()
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    big = nib.Nifti1Image(values, AFFINE, header)
    nifti = decode_nifti(big.to_bytes())
    assert np.array_equal(nifti.array.T, values)
    assert nifti.array.dtype == np.dtype("int16")
    second = _file(values, nib.Nifti2Image)
    nifti = decode_nifti(second)
    written = gzip.decompress(encode_nifti(nifti.array, nifti.header, nifti.affine))
    assert nib.Nifti2Image.from_bytes(written).shape == values.shape


def test_without_a_header_the_affine_is_used_and_bytes_repeat():
    label = _values("uint16").T
    first = encode_nifti(label, None, AFFINE)
    assert first == encode_nifti(label, None, AFFINE)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(first))
    assert np.allclose(image.affine, AFFINE)
    assert image.get_data_dtype() == np.uint16


def test_values_that_do_not_fit_the_source_dtype_widen_it():
    nifti = decode_nifti(_file(_values("uint8")))
    wide = nifti.array.astype(np.uint16) + 200
    written = gzip.decompress(encode_nifti(wide, nifti.header, nifti.affine))
    assert nib.Nifti1Image.from_bytes(written).get_data_dtype() == np.uint16


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no nifti at all" * 100,
        _file(_values())[:-50],
        gzip.compress(_file(_values()))[:-50],
        gzip.compress(b"short"),
    ],
    ids=["empty", "text", "cut", "cut gzip", "short gzip"],
)
def test_what_cannot_be_read_is_an_input_error(data):
    with pytest.raises(InputError, match="not a readable NIfTI file"):
        decode_nifti(data)


def test_shapes_and_types_that_are_no_volume_are_refused():
    with pytest.raises(InputError, match="expected x, y, z"):
        decode_nifti(_file(_values(shape=(4, 5))))
    with pytest.raises(InputError, match="expected x, y, z"):
        decode_nifti(_file(_values(shape=(4, 5, 6, 2, 3))))
    with pytest.raises(InputError, match="complex"):
        decode_nifti(_file(_values().astype(np.complex64)))


def test_a_flat_affine_is_refused():
    flat = AFFINE.copy()
    flat[:, 2] = 0
    image = nib.Nifti1Image(_values(), None)
    image.header.set_sform(flat, 1)
    with pytest.raises(InputError, match="not positive"):
        decode_nifti(image.to_bytes())


@pytest.mark.parametrize(
    ("name", "case"),
    [("a.nii", "a"), ("a.b.nii.gz", "a.b"), ("A.NII.GZ", "A"), ("a.txt", None), ("._a.nii", None)],
)
def test_the_case_is_the_file_name_without_extensions(name, case):
    assert stem(name) == case


@pytest.mark.parametrize(("value", "dtype"), [(16_777_000, np.float32), (16_777_217, np.float64)])
def test_whole_numbers_keep_their_value_when_they_are_scaled(value, dtype):
    nifti = decode_nifti(_file(np.full((2, 3, 4), value, np.int32), slope=(1.0, 2.0)))
    assert nifti.array.dtype == dtype
    assert (nifti.array == value + 2).all()
