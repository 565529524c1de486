/* Starts the USB serial line, then devices/mcu/node.c. */
#include "pico/stdlib.h"

int nonn_node(void);

int main(void) {
    stdio_init_all();
    return nonn_node();
}
