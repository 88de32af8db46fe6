/* Stand-ins for TensorRT's libraries: the symbols that its Python bindings need to be imported, and nothing else.

   Every factory returns NULL, so that nothing can be built or run: the bindings then show their classes, enumerations and
   signatures. Compiled once for each library with -DLIB_<name> and -DVERSION=<major * 10000>.

   libnvparsers (UFF and Caffe, TensorRT 8 only) is C++: its symbols are given by their mangled names. */

#include <stddef.h>
#include <stdint.h>

#ifdef LIB_nvinfer
void *createInferBuilder_INTERNAL(void *logger, int32_t version) { return NULL; }
void *createInferRuntime_INTERNAL(void *logger, int32_t version) { return NULL; }
void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t version) { return NULL; }
void *getPluginRegistry(void) { return NULL; }
void *getBuilderPluginRegistry(int32_t capability) { return NULL; }
void *getLogger(void) { return NULL; }
int32_t getInferLibVersion(void) { return VERSION; }
#endif

#ifdef LIB_nvinfer_plugin
_Bool initLibNvInferPlugins(void *logger, char const *space) { return 0; }
#endif

#ifdef LIB_nvonnxparser
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) { return NULL; }
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) { return NULL; }
int getNvOnnxParserVersion(void) { return VERSION; }
#endif

#ifdef LIB_nvparsers
void *uff_parser(void) __asm__("_ZN11nvuffparser15createUffParserEv");
void *caffe_parser(void) __asm__("_ZN14nvcaffeparser117createCaffeParserEv");
void caffe_shutdown(void) __asm__("_ZN14nvcaffeparser123shutdownProtobufLibraryEv");
void field_map(void *self, char const *name, void const *data, int type, int length) __asm__(
    "_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi");
void *uff_parser(void) { return NULL; }
void *caffe_parser(void) { return NULL; }
void caffe_shutdown(void) {}
void field_map(void *self, char const *name, void const *data, int type, int length) {}
#endif
