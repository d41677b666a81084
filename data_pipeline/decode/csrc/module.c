/* The Python module: buffers in, buffers out, no GIL while pixels are made. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "announce.h"
#include "region.h"
#include "tile.h"

typedef struct {
    Py_buffer *payloads;
    Py_ssize_t count;
    Py_buffer boxes, flips, out;
    int width, height, bicubic, allow_simd;
    unsigned long long max_pixels;
    uint8_t *statuses;
} Batch;

/* Decoders at rest, kept with their memory: fresh pages cost as much as a tenth of an image. Touched only with the
 * GIL held. */
enum { MAX_IDLE = 64, MAX_IDLE_BYTES = 1 << 25 };
static Decoder *idle[MAX_IDLE];
static int idle_count;

static Decoder *take_decoder(int allow_simd) {
    Decoder *decoder = idle_count ? idle[--idle_count] : PyMem_RawCalloc(1, sizeof *decoder);
    if (decoder) decoder_start(decoder, allow_simd);
    return decoder;
}

static void lay_down(Decoder *decoder) {
    if (decoder->memory_bytes > MAX_IDLE_BYTES) decoder_stop(decoder);
    if (idle_count < MAX_IDLE) {
        idle[idle_count++] = decoder;
        return;
    }
    decoder_stop(decoder);
    PyMem_RawFree(decoder);
}

static void run_batch(const Batch *batch, Decoder *decoder) {
    const int32_t *box = batch->boxes.buf;
    const uint8_t *flip = batch->flips.buf;
    const size_t image_bytes = (size_t)batch->height * (size_t)batch->width * 3;
    for (Py_ssize_t i = 0; i < batch->count; i++, box += 4) {
        const Request request = {
            .data = batch->payloads[i].buf, .size = (size_t)batch->payloads[i].len,
            .left = box[0], .top = box[1], .right = box[2], .bottom = box[3],
            .flip = flip[i] != 0, .bicubic = batch->bicubic, .max_pixels = batch->max_pixels,
            .out = (uint8_t *)batch->out.buf + (size_t)i * image_bytes,
            .width = batch->width, .height = batch->height,
        };
        batch->statuses[i] = (uint8_t)decoder_run(decoder, &request);
    }
}

static int sizes_match(const Batch *batch) {
    const size_t image_bytes = (size_t)batch->height * (size_t)batch->width * 3;
    return batch->height > 0 && batch->width > 0 && batch->height <= 65535 && batch->width <= 65535 &&
           batch->boxes.len == batch->count * 4 * (Py_ssize_t)sizeof(int32_t) && batch->flips.len == batch->count &&
           (size_t)batch->out.len == (size_t)batch->count * image_bytes;
}

static PyObject *run_on_sequence(PyObject *sequence, Batch *batch) {
    PyObject *result = NULL;
    Py_ssize_t taken = 0;
    batch->count = PySequence_Fast_GET_SIZE(sequence);
    if (!sizes_match(batch)) {
        PyErr_SetString(PyExc_ValueError, "boxes, flips and out do not match the number of payloads");
        return NULL;
    }
    batch->payloads = PyMem_New(Py_buffer, batch->count ? batch->count : 1);
    if (!batch->payloads) return PyErr_NoMemory();
    for (; taken < batch->count; taken++)
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(sequence, taken), &batch->payloads[taken], PyBUF_SIMPLE) < 0)
            break;
    Decoder *decoder = taken == batch->count ? take_decoder(batch->allow_simd) : NULL;
    if (decoder && (result = PyBytes_FromStringAndSize(NULL, batch->count)) != NULL) {
        batch->statuses = (uint8_t *)PyBytes_AS_STRING(result);
        Py_BEGIN_ALLOW_THREADS
        run_batch(batch, decoder);
        Py_END_ALLOW_THREADS
    }
    if (decoder) lay_down(decoder);
    else if (taken == batch->count) PyErr_NoMemory();
    while (taken > 0) PyBuffer_Release(&batch->payloads[--taken]);
    PyMem_Free(batch->payloads);
    return result;
}

PyDoc_STRVAR(decode_batch_doc,
"decode_batch(payloads, boxes, flips, out, height, width, bicubic, max_pixels, allow_simd) -> bytes\n\n"
"One status per payload. boxes: int32 (n, 4); flips: uint8 (n,); out: uint8 (n, height, width, 3).");

static PyObject *decode_batch(PyObject *module, PyObject *arguments) {
    PyObject *payloads, *sequence, *result;
    Batch batch;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "Oy*y*w*iipKp", &payloads, &batch.boxes, &batch.flips, &batch.out, &batch.height,
            &batch.width, &batch.bicubic, &batch.max_pixels, &batch.allow_simd))
        return NULL;
    sequence = PySequence_Fast(payloads, "payloads must be a sequence");
    result = sequence ? run_on_sequence(sequence, &batch) : NULL;
    Py_XDECREF(sequence);
    PyBuffer_Release(&batch.boxes);
    PyBuffer_Release(&batch.flips);
    PyBuffer_Release(&batch.out);
    return result;
}

PyDoc_STRVAR(check_doc, "check(payload, max_pixels) -> int\n\nEntropy-decode the whole image; a status.");

static PyObject *check(PyObject *module, PyObject *arguments) {
    Py_buffer payload;
    unsigned long long max_pixels;
    Status status;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*K", &payload, &max_pixels)) return NULL;
    Decoder *decoder = take_decoder(1);
    if (!decoder) {
        PyBuffer_Release(&payload);
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    status = decoder_check(decoder, payload.buf, (size_t)payload.len, max_pixels);
    Py_END_ALLOW_THREADS
    lay_down(decoder);
    PyBuffer_Release(&payload);
    return PyLong_FromLong(status);
}

PyDoc_STRVAR(announce_doc,
"announce(payload) -> tuple | None\n\n"
"(width, height, components, bits, coding, orientation, restart_interval), or None where the header is not plain.");

static PyObject *announce(PyObject *module, PyObject *payload) {
    Py_buffer view;
    Announced found;
    (void)module;
    if (PyObject_GetBuffer(payload, &view, PyBUF_SIMPLE) < 0) return NULL;
    const Status status = jpeg_announce(&found, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    if (status != OK) Py_RETURN_NONE;
    return Py_BuildValue(
        "(iiiiiii)", found.width, found.height, found.components, found.bits, found.coding, found.orientation,
        found.restart_interval);
}

PyDoc_STRVAR(tile_doc,
"tile(payload, tile_width, max_pixels) -> bytes | int\n\n"
"The same coefficients with a restart marker every `tile_width` pixels and optimal Huffman tables, or a status.");

static PyObject *tile(PyObject *module, PyObject *arguments) {
    Py_buffer payload;
    unsigned long long max_pixels;
    int tile_width;
    uint8_t *bytes = NULL;
    size_t size = 0;
    Status status;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*iK", &payload, &tile_width, &max_pixels)) return NULL;
    if (tile_width < 1) {
        PyBuffer_Release(&payload);
        PyErr_SetString(PyExc_ValueError, "tile_width must be 1 or more");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    status = tile_jpeg(payload.buf, (size_t)payload.len, tile_width, max_pixels, &bytes, &size);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&payload);
    if (status != OK) return PyLong_FromLong(status);
    PyObject *result = PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)size);
    tile_free(bytes);
    return result;
}

PyDoc_STRVAR(simd_doc, "simd() -> str\n\nThe instruction set that this processor is served with.");

static PyObject *simd(PyObject *module, PyObject *arguments) {
    (void)module, (void)arguments;
    return PyUnicode_FromString(pixels_select(1) == &plain_pixels ? "plain" : "avx2");
}

static PyMethodDef methods[] = {
    {"decode_batch", decode_batch, METH_VARARGS, decode_batch_doc},
    {"check", check, METH_VARARGS, check_doc},
    {"announce", announce, METH_O, announce_doc},
    {"tile", tile, METH_VARARGS, tile_doc},
    {"simd", simd, METH_NOARGS, simd_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_kernel", "Decoding of sequential JPEGs; see data_pipeline.decode.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&definition); }
