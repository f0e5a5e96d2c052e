/* The headers alone, by the target that links nothing. */
#include <warpmail/abi.h>
#include <warpmail/warpmail.h>

uint32_t headers_only(void);
uint32_t headers_only(void) {
    return WM_ABI_VERSION;
}
