/* The nine functions of TensorRT's libraries without which its Python bindings cannot be loaded.
 * They do nothing. They let tests inspect the bindings' classes, flags and signatures. */

#define NOTHING(name) \
    void *name(void) { return 0; }
#define NUMBER(name, value) \
    int name(void) { return value; }

NOTHING(createInferBuilder_INTERNAL)
NOTHING(createInferRefitter_INTERNAL)
NOTHING(createInferRuntime_INTERNAL)
NOTHING(createNvOnnxParser_INTERNAL)
NOTHING(createNvOnnxParserRefitter_INTERNAL)
NOTHING(getBuilderPluginRegistry)
NOTHING(getPluginRegistry)
NUMBER(getNvOnnxParserVersion, MAJOR * 10000 + 1601)
NUMBER(initLibNvInferPlugins, 1)
