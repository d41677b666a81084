/* The Python module: addresses of fp32 tensors in, results in tensors that the caller has made; no GIL while it
   counts. Rows are cut into chunks that fit a cache and do not depend on the number of threads, and partial sums
   are added in the chunks' order: a result is the same to the bit with one thread and with many. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "rows.h"

enum { CHUNK_BYTES = 1 << 17 };

typedef struct {
    size_t rows, width, step, chunks;
} Cut;

static Cut cut_rows(size_t rows, size_t width) {
    size_t step = CHUNK_BYTES / (width * sizeof(float));
    if (step < 1) step = 1;
    return (Cut){rows, width, step, (rows + step - 1) / step};
}

static size_t rows_of(const Cut *cut, size_t chunk) {
    const size_t left = cut->rows - chunk * cut->step;
    return left < cut->step ? left : cut->step;
}

/* Mean and biased variance per channel; chunks' moments are joined as in Chan, Golub, LeVeque (1979). */
static int moments(const float *x, const Cut *cut, float *mean, float *variance, int threads) {
    const size_t width = cut->width;
    float *partial = PyMem_RawMalloc(2 * cut->chunks * width * sizeof *partial);
    if (!partial) return -1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size_t k = 0; k < cut->chunks; k++)
        rows_moments(x + k * cut->step * width, rows_of(cut, k), width, partial + 2 * k * width,
                     partial + (2 * k + 1) * width);
    for (size_t c = 0; c < width; c++) {
        double count = 0, centre = 0, squares = 0;
        for (size_t k = 0; k < cut->chunks; k++) {
            const double rows = (double)rows_of(cut, k), apart = partial[2 * k * width + c] - centre;
            count += rows;
            centre += apart * rows / count;
            squares += partial[(2 * k + 1) * width + c] + apart * apart * rows * (count - rows) / count;
        }
        mean[c] = (float)centre;
        variance[c] = (float)(squares / count);
    }
    PyMem_RawFree(partial);
    return 0;
}

static int gradient_sums(const float *x, const float *dy, float *g, const Cut *cut, const float *mean,
                         const float *scale, const float *bias, int gelu, float *sum, float *sum_centred,
                         int threads) {
    const size_t width = cut->width;
    float *partial = PyMem_RawCalloc(2 * cut->chunks * width, sizeof *partial);
    if (!partial) return -1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size_t k = 0; k < cut->chunks; k++) {
        const size_t at = k * cut->step * width;
        rows_gradient_sums(x + at, dy + at, g ? g + at : NULL, rows_of(cut, k), width, mean, scale, bias, gelu,
                           partial + 2 * k * width, partial + (2 * k + 1) * width);
    }
    for (size_t c = 0; c < width; c++) {
        double total = 0, centred = 0;
        for (size_t k = 0; k < cut->chunks; k++) {
            total += partial[2 * k * width + c];
            centred += partial[(2 * k + 1) * width + c];
        }
        sum[c] = (float)total;
        sum_centred[c] = (float)centred;
    }
    PyMem_RawFree(partial);
    return 0;
}

#define AT(address) ((float *)(uintptr_t)(address))

PyDoc_STRVAR(moments_doc, "moments(x, rows, width, mean, variance, threads)\n\nBiased variance per channel.");

static PyObject *call_moments(PyObject *module, PyObject *arguments) {
    unsigned long long x, mean, variance;
    Py_ssize_t rows, width;
    int threads, status;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "KnnKKi", &x, &rows, &width, &mean, &variance, &threads)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    const Cut cut = cut_rows((size_t)rows, (size_t)width);
    status = moments(AT(x), &cut, AT(mean), AT(variance), threads);
    Py_END_ALLOW_THREADS
    if (status) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(normalise_doc, "normalise(x, y, rows, width, mean, scale, bias, gelu, threads)");

static PyObject *call_normalise(PyObject *module, PyObject *arguments) {
    unsigned long long x, y, mean, scale, bias;
    Py_ssize_t rows, width;
    int gelu, threads;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "KKnnKKKpi", &x, &y, &rows, &width, &mean, &scale, &bias, &gelu, &threads))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    const Cut cut = cut_rows((size_t)rows, (size_t)width);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size_t k = 0; k < cut.chunks; k++) {
        const size_t at = k * cut.step * cut.width;
        rows_normalise(AT(x) + at, AT(y) + at, rows_of(&cut, k), cut.width, AT(mean), AT(scale), AT(bias), gelu);
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gradient_sums_doc,
"gradient_sums(x, dy, g, rows, width, mean, scale, bias, gelu, sum, sum_centred, threads)\n\n"
"g: where dy * GELU' is written; 0 without GELU.");

static PyObject *call_gradient_sums(PyObject *module, PyObject *arguments) {
    unsigned long long x, dy, g, mean, scale, bias, sum, sum_centred;
    Py_ssize_t rows, width;
    int gelu, threads, status;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "KKKnnKKKpKKi", &x, &dy, &g, &rows, &width, &mean, &scale, &bias, &gelu, &sum, &sum_centred,
            &threads))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    const Cut cut = cut_rows((size_t)rows, (size_t)width);
    status = gradient_sums(AT(x), AT(dy), AT(g), &cut, AT(mean), AT(scale), AT(bias), gelu, AT(sum),
                           AT(sum_centred), threads);
    Py_END_ALLOW_THREADS
    if (status) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gradient_doc, "gradient(x, g, dx, rows, width, mean, scale, slope, offset, threads); dx may be g");

static PyObject *call_gradient(PyObject *module, PyObject *arguments) {
    unsigned long long x, g, dx, mean, scale, slope, offset;
    Py_ssize_t rows, width;
    int threads;
    (void)module;
    if (!PyArg_ParseTuple(
            arguments, "KKKnnKKKKi", &x, &g, &dx, &rows, &width, &mean, &scale, &slope, &offset, &threads))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    const Cut cut = cut_rows((size_t)rows, (size_t)width);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size_t k = 0; k < cut.chunks; k++) {
        const size_t at = k * cut.step * cut.width;
        rows_gradient(AT(x) + at, AT(g) + at, AT(dx) + at, rows_of(&cut, k), cut.width, AT(mean), AT(scale),
                      AT(slope), AT(offset));
    }
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gelu_doc, "gelu(x, y, count, threads)");

static PyObject *call_gelu(PyObject *module, PyObject *arguments) {
    unsigned long long x, y;
    Py_ssize_t count;
    int threads;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "KKni", &x, &y, &count, &threads)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    const Cut cut = cut_rows((size_t)count, 1);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size_t k = 0; k < cut.chunks; k++) rows_gelu(AT(x) + k * cut.step, AT(y) + k * cut.step, rows_of(&cut, k));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

PyDoc_STRVAR(gelu_gradient_doc, "gelu_gradient(x, dy, dx, count, threads)");

static PyObject *call_gelu_gradient(PyObject *module, PyObject *arguments) {
    unsigned long long x, dy, dx;
    Py_ssize_t count;
    int threads;
    (void)module;
    if (!PyArg_ParseTuple(arguments, "KKKni", &x, &dy, &dx, &count, &threads)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    const Cut cut = cut_rows((size_t)count, 1);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (size_t k = 0; k < cut.chunks; k++)
        rows_gelu_gradient(AT(x) + k * cut.step, AT(dy) + k * cut.step, AT(dx) + k * cut.step, rows_of(&cut, k));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"moments", call_moments, METH_VARARGS, moments_doc},
    {"normalise", call_normalise, METH_VARARGS, normalise_doc},
    {"gradient_sums", call_gradient_sums, METH_VARARGS, gradient_sums_doc},
    {"gradient", call_gradient, METH_VARARGS, gradient_doc},
    {"gelu", call_gelu, METH_VARARGS, gelu_doc},
    {"gelu_gradient", call_gelu_gradient, METH_VARARGS, gelu_gradient_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_rows", "Loops over rows of channels on a CPU.", -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__rows(void) { return PyModule_Create(&definition); }
